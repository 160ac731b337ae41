"""Our losses against those of an installed library, number by number."""
