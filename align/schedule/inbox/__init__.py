"""The preference inbox: pairs and ratings that people send, until a round has learnt from them.

    read    rows, judged one by one as a round would read them    `feedback`
    keep    deduplicated rows in numbered streams                 `inbox`
    drop    files that other programs put into a folder           `drop`
    write   many senders' rows in one durable commit              `writer`
    feed    what a round takes, and keeps when it is resumed      `feed`
    purge   everything a person sent, wherever it went            `purge`
    traces  what of it lies in the inbox's own files              `traces`

It lies in the database of the ledger: a verdict and the rows it spends are one transaction.
"""

from align.schedule.inbox.inbox import Inbox, Waiting

__all__ = ["Inbox", "Waiting"]
