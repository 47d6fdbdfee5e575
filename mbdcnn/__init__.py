"""What the stages of MB-DCNN share: trained networks at work, coarse masks, localisation maps, panels."""
