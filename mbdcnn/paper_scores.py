"""The paper's printed scores in percent, shown beside ours. Test: Tables I and II; validation: V, VI."""

SEGMENTATION = {
    ('CoarseSN', 'Validation'): {'JA': 78.9, 'DI': 86.5, 'pixel-AC': 95.7, 'pixel-SE': 88.7,
                                 'pixel-SP': 95.0},
    ('EnhancedSN', 'Validation'): {'JA': 80.0, 'DI': 87.9, 'pixel-AC': 96.2, 'pixel-SE': 87.4,
                                   'pixel-SP': 95.3},
    ('EnhancedSN', 'Testing'): {'JA': 80.4, 'DI': 87.8, 'pixel-AC': 94.7, 'pixel-SE': 87.4,
                                'pixel-SP': 96.8},
}
CLASSIFICATION = {   # AUC in percent
    'Validation': {'melanoma': 94.6, 'keratosis': 99.4, 'mean AUC': 97.0},
    'Testing': {'melanoma': 90.3, 'keratosis': 97.3, 'mean AUC': 93.8},
}
