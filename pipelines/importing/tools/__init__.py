"""The tools whose configs can be imported: each module registers one `Importer`."""
