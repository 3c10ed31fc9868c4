"""Steps at many groups at once that are recorded as flat graphs of tensor operations, and replayed."""
