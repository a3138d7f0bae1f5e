"""Where a model comes from: `load_model` and `wrap`, the catalog, downloads, and Llamba."""
