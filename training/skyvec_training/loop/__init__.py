"""Step after step: gradients, checkpoints, logs. It knows no modality."""
