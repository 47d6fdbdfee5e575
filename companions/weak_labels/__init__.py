"""Weak labels (Chu, Li, Vo, Summers, Sizikova; MIDL 2021): segmentation from two diameters and a cluster."""

REQUIREMENTS = 'companions/weak_labels/requirements.txt'
