"""What a planner may ask. Nothing here has an effect."""
