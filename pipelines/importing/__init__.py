"""Jobs from the configs of other fine-tuning tools (`alfine import`): one file per tool in `tools/`.

Imports neither torch nor Ludwig, and reads no rows.
"""
