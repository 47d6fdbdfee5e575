"""Mask2Lesion (Abhishek and Hamarneh, SASHIMI 2019): a conditional GAN that draws a lesion for a mask."""
