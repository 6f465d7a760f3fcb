DROP TABLE event_persister_archive;
DROP TABLE event_persister_archives;
