"""The editors compared, each behind `base.Method`."""
