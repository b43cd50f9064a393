"""What Sluiceway tells about itself: metrics, logs, probes. It never decides, and it never shows a payload."""
