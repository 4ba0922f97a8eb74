"""What a meta-training run survives: kills, a full disk; and whether it is the same run twice."""
