"""Images from their source to the device: sources, decoding, loading, augmentation."""
