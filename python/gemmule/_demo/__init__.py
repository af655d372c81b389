"""The small trained model that comes with the package, and the drawings and sounds it knows."""
