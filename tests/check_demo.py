"""Last line of `make demo`: the networks must have learned, or the command fails.

Reads <root>/results/{CoarseSN,EnhancedSN,MaskCN}_Testing.json.
"""
import json
import sys
from pathlib import Path

LEAST = {'CoarseSN': ('JA', 0.70), 'EnhancedSN': ('JA', 0.70), 'MaskCN': ('mean AUC', 0.75)}


def main(root):
    """Print each network's score beside the least it must reach; exit with 1 when one is below."""
    failed = False
    for network, (name, least) in LEAST.items():
        result = json.loads((Path(root) / 'results' / f'{network}_Testing.json').read_text())
        enough = result[name] is not None and result[name] >= least
        failed |= not enough
        shown = 'undefined' if result[name] is None else f'{result[name]:.3f}'
        print(f'{network:10}  {name:8} {shown}  (at least {least:.2f}: '
              f'{"reached" if enough else "MISSED"})')
    print(f'Everything on one page: {root}/results/report.html   panels: {root}/models/*/panel.png   '
          f'tables: {root}/results/')
    return int(failed)


if __name__ == '__main__':
    sys.exit(main(sys.argv[1] if len(sys.argv) > 1 else 'demo'))
