"""The ground floor, which knows no data set and no network: settings, training loop, files, samples, scores."""
