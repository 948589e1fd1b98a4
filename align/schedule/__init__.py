"""Rounds that run themselves: when they fall due, and that each is run once.

    config  what a round of a campaign file says about its time         `config`
    clock   ticks of a cron expression in a time zone                   `clock`
    due     schedules, history, arrivals, now -> what is due, or why not   `due`
    claims  a due key becomes a round, once, whoever asks                  `claims`
    checked what is due can be used, or which round cannot                 `checked`
    skips   a person passes over what is due                               `skips`
    expand  a campaign file and its claims -> a campaign of plain rounds   `expand`
    loop    sleeps until something is due                                  `loop`

Nothing here runs a round. A round that fell due is a round like any other, with a name of its own.
"""
