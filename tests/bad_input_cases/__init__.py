"""Bad inputs as users make them, each a folder of files and a command in it."""

from tests.bad_input_cases import commands, common, configs, models, retention, rows

CASES = [
    *common.CASES,
    *configs.CASES,
    *rows.CASES,
    *models.CASES,
    *retention.CASES,
    *commands.CASES,
]
