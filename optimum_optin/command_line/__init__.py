"""What the commands share: arguments, options made from signatures, and the objects that they stand for."""
