"""From downloads to crops and lists: ISIC, PH2 and drawn data, and what lies where below a root."""
