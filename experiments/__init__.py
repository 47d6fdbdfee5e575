"""From experiments.toml to runs, and from runs to the paper's tables and figures."""
