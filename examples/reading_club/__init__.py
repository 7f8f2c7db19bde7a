"""A reading club: who registers a book tells the mailer, the catalog and the authors, which are services of their own.

* `domain`: what there is and what can happen; knows nothing of databases, streams or letters.
* `service`: what is done about it, and what a transaction needs to offer.
* `adapters`: where books are kept and letters sent.
* `publisher`, `mailer`, `catalog`, `authors`: the programs. Each is a process, and they share nothing but a stream.
* `authors` keeps a read model in Redis: the books of each author are counted, each once.
* `desk`: the publisher with a database, and the relay that sends what was left.

In as many terminals, from the folder above `examples`, with a Redis or Valkey server on localhost (or another in EVENTBUS_URL):

    eventbus run examples.reading_club.mailer
    eventbus run examples.reading_club.catalog:catalog
    eventbus run examples.reading_club.authors:authors
    python -m examples.reading_club.publisher 9780441172719 "Dune" "Frank Herbert"
    python -m examples.reading_club.authors

With SQLAlchemy, and SQLite in reading-club.db (or another URL in READING_CLUB_DATABASE), a book is registered once and told of for sure:

    eventbus relay examples.reading_club.desk:relay
    python -m examples.reading_club.desk 9780441172719 "Dune" "Frank Herbert"
"""
