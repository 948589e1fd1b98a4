"""Tasks of the lm-evaluation-harness as suites: its prompts and metrics, our engines.

suite       a task of a campaign file: found in its folder, checked, loaded
task_file   its YAML, read before anything in it is loaded: is its data here, does it run code
task        the task with its items, and how a snapshot is measured on them
loaded      a task that lm_eval has loaded, whose code runs where it is
confined    the same in a process of its own, for tasks that bring code; worker is its other end
documents   a task's documents and questions, as both send them
requests    whether what it asks of a model fits
lm          our engines as an ``lm_eval.api.model.LM``
values      from what a metric says of an item to one number, higher is better
package     lm_eval itself: imported late, kept quiet, its templates kept from running code
tasks/      tasks that come with Keel, over files that a user has
"""
