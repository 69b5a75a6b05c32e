"""The main job: command line, configuration, run directories and reports."""
