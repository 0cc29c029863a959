"""Record sets: packing, reading, loading."""
