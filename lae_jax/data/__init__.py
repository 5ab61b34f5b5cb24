"""From photographs to batches: readers, records, splits, orders, augmentation, tf.data."""
