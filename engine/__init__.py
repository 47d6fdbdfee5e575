"""What all stages share: settings, checkpoints, distribution, logging, metrics, evaluation."""
