"""Rounds that run themselves: when they fall due, and that each is run once.

    due      schedules, history, arrivals, now -> what is due, or why not   `due`
    claims   a due key becomes a round, once, whoever asks                  `claims`
    checked  what is due can be used, or which round cannot                 `checked`
    skips    a person passes over what is due                               `skips`
    loop     sleeps until something is due                                  `loop`
    inbox/   feedback that arrives, until a round has learnt from it        `inbox`

Nothing here runs a round. A round that fell due is a round like any other, with a name of its own.
"""
