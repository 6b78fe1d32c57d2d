"""The run directory: config and metadata, checkpoints, metrics log, report, figures."""
