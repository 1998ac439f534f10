"""What MiniStack does otherwise than AWS, and matters here: one module per service, one function per difference."""
