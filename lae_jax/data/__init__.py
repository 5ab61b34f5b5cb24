"""Data: source readers, prepared data sets, splits, sample orders, augmentation, the tf.data pipeline."""
