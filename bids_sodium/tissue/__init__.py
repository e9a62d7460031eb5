"""What a voxel is made of: segmentation, filling, regions, partial volume."""
