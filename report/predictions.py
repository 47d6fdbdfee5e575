"""The page of predict.py, which shows the overlays that lie beside it."""
from pathlib import Path

from dataset.isic import CLASSES
from engine import files
from report.render import render


def write_page(path, rows, faults, notice):
    """Write a page of all predictions. rows : those of predictions.csv; faults : lines on unusable files."""
    cards = [row | {
        'title': Path(row['file']).name, 'overlay': f'overlays/{row["name"]}.jpg',
        'mask': f'masks/{row["name"]}.png', 'mask_confidence': f'{float(row["mask_confidence"]):.2f}',
        'lesion_percent': f'{float(row["lesion_percent"]):.1f}',
        'classes': [(name, f'{100 * float(row[name]):.1f}') for name in CLASSES]} for row in rows]
    files.write_text(path, render('predictions.html', cards=cards, faults=faults, notice=notice))
