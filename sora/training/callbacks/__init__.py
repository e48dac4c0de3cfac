"""What happens around training steps: checkpoints, the record, validation, the clock."""
