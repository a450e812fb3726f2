"""What leaves a run for other tools: spans for OpenTelemetry, scores for trackio."""
