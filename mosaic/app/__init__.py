"""The application: config, wiring, views and the command line."""
