"""The study: families of methods, presets and plans, runs and their store."""
