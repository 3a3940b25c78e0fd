"""Small pages about data: one HTML file each, which runs nothing and loads nothing."""
