"""Pictures of runs; one module per figure."""
