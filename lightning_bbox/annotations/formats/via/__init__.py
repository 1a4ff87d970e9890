"""VIA, the VGG Image Annotator: its CSV, its JSON, and the regions that both hold."""
