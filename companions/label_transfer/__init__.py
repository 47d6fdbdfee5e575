"""Masks from image labels alone: a translator from diseased to healthy pictures, and what it attends to."""
