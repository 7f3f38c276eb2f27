"""The names of core's commands, where each is found, and its line in `tutelage --help`."""

COMMANDS: dict[str, tuple[str, str]] = {
    "init": ("tutelage.cli.init:init", "Write a first recipe with example data."),
    "check": ("tutelage.cli.train:check", "Find everything wrong with a recipe before any work; writes nothing."),
    "train": ("tutelage.cli.train:train", "Run a recipe."),
    "resume": ("tutelage.cli.train:resume", "Go on with a run that was stopped or killed."),
    "runs": ("tutelage.cli.runs:runs", "List, show, compare and prune runs."),
    "plan": ("tutelage.cli.plan:plan", "Work out what to train with a budget."),
    "data": ("tutelage.cli.data:data", "Look at data as the model will see it."),
    "generate": ("tutelage.cli.generate:generate", "Answer prompts with a model, an adapter or what a run made."),
    "chat": ("tutelage.cli.chat:chat", "Talk with a model, an adapter or what a run made."),
    "rank": ("tutelage.cli.rank:rank", "Order answers that a run waits for people to judge."),
    "merge": ("tutelage.cli.merge:merge", "Make a plain model of an adapter and its base."),
    "plugins": ("tutelage.cli.plugins:plugins", "List what is installed, and why something is switched off."),
    "schema": ("tutelage.cli.schema:schema", "Print the JSON Schema of a recipe."),
    "completion": ("tutelage.cli.completion:completion", "Print the script that completes commands in your shell."),
}

GROUPS: dict[str, tuple[str, ...]] = {"data": ("show",)}
"""Groups that plugins may add commands to, with the commands that core has there."""
