BEGIN TRANSACTION;
CREATE TABLE alias_moves (
	seq INTEGER NOT NULL, 
	alias TEXT NOT NULL, 
	previous TEXT, 
	target TEXT NOT NULL, 
	round INTEGER, 
	reason TEXT NOT NULL, 
	time TEXT NOT NULL, 
	PRIMARY KEY (seq), 
	FOREIGN KEY(target) REFERENCES snapshots (id)
)
 STRICT

;
INSERT INTO "alias_moves" VALUES(1,'production',NULL,'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa',NULL,'start of the campaign','1970-01-02T00:00:00.500+00:00');
INSERT INTO "alias_moves" VALUES(2,'production','aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa','bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb',0,'round ''reverse'' was accepted','1970-01-02T00:00:00.500+00:00');
CREATE TABLE campaigns (
	id INTEGER NOT NULL CHECK (id = 1), 
	name TEXT NOT NULL, 
	config TEXT NOT NULL, 
	config_hash TEXT NOT NULL, 
	created TEXT NOT NULL, 
	PRIMARY KEY (id)
)
 STRICT

;
INSERT INTO "campaigns" VALUES(1,'digits','{"gate": {"alpha": 0.05}, "name": "digits", "rounds": [{"name": "reverse", "steps": 45}, {"name": "sort", "steps": 45}]}','hash-1','1970-01-02T00:00:00.500+00:00');
CREATE TABLE claims (
	id INTEGER NOT NULL CHECK (id = 1), 
	token TEXT NOT NULL, 
	owner TEXT NOT NULL, 
	host TEXT NOT NULL, 
	pid INTEGER NOT NULL, 
	process_started REAL NOT NULL, 
	heartbeat REAL NOT NULL, 
	PRIMARY KEY (id)
)
 STRICT

;
CREATE TABLE evaluations (
	snapshot TEXT NOT NULL, 
	suite TEXT NOT NULL, 
	suite_hash TEXT NOT NULL, 
	path TEXT NOT NULL, 
	n INTEGER NOT NULL, 
	mean REAL NOT NULL, 
	recorded TEXT NOT NULL, 
	UNIQUE (snapshot, suite_hash), 
	FOREIGN KEY(snapshot) REFERENCES snapshots (id)
)
 STRICT

;
INSERT INTO "evaluations" VALUES('bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb','general','h1','evals/b-h1.parquet',1500,0.75,'1970-01-02T00:00:00.500+00:00');
CREATE TABLE rounds (
	"index" INTEGER NOT NULL, 
	attempt INTEGER NOT NULL, 
	name TEXT NOT NULL, 
	state TEXT NOT NULL CHECK (state IN ('planned', 'running', 'gating', 'accepted', 'rejected', 'failed')), 
	parent TEXT, 
	candidate TEXT, 
	report TEXT, 
	started TEXT, 
	ended TEXT, 
	PRIMARY KEY ("index", attempt), 
	CHECK (state NOT IN ('gating', 'accepted', 'rejected') OR candidate IS NOT NULL), 
	FOREIGN KEY(candidate) REFERENCES snapshots (id)
)
 STRICT

;
INSERT INTO "rounds" VALUES(0,0,'reverse','planned',NULL,NULL,NULL,NULL,NULL);
INSERT INTO "rounds" VALUES(1,0,'sort','planned',NULL,NULL,NULL,NULL,NULL);
INSERT INTO "rounds" VALUES(0,1,'reverse','accepted','aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa','bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb','{"checks": [{"p": 0.01, "suite": "general"}], "verdict": "accepted"}','1970-01-02T00:00:00.500+00:00','1970-01-02T00:00:00.500+00:00');
CREATE TABLE snapshots (
	id TEXT NOT NULL, 
	kind TEXT NOT NULL, 
	parent TEXT, 
	round TEXT, 
	bytes INTEGER NOT NULL, 
	manifest TEXT NOT NULL, 
	recorded TEXT NOT NULL, 
	PRIMARY KEY (id)
)
 STRICT

;
INSERT INTO "snapshots" VALUES('aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa','model',NULL,NULL,0,'{
  "files": [],
  "kind": "model",
  "provenance": {
    "base": null,
    "config_hash": null,
    "data_hashes": {},
    "extra": {},
    "parent": null,
    "round": null,
    "seeds": {},
    "versions": {}
  },
  "schema_version": 1
}
','1970-01-02T00:00:00.500+00:00');
INSERT INTO "snapshots" VALUES('bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb','model',NULL,NULL,0,'{
  "files": [],
  "kind": "model",
  "provenance": {
    "base": null,
    "config_hash": null,
    "data_hashes": {},
    "extra": {},
    "parent": null,
    "round": null,
    "seeds": {},
    "versions": {}
  },
  "schema_version": 1
}
','1970-01-02T00:00:00.500+00:00');
INSERT INTO "snapshots" VALUES('cccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccc','model',NULL,NULL,0,'{
  "files": [],
  "kind": "model",
  "provenance": {
    "base": null,
    "config_hash": null,
    "data_hashes": {},
    "extra": {},
    "parent": null,
    "round": null,
    "seeds": {},
    "versions": {}
  },
  "schema_version": 1
}
','1970-01-02T00:00:00.500+00:00');
CREATE TABLE store_schema (
	version INTEGER NOT NULL
)
 STRICT

;
INSERT INTO "store_schema" VALUES(1);
CREATE UNIQUE INDEX one_accepted_attempt ON rounds ("index") WHERE state = 'accepted'
    ;
CREATE UNIQUE INDEX one_live_attempt ON rounds ((1)) WHERE state IN ('running', 'gating')
    ;
CREATE TRIGGER alias_moves_need_an_accept BEFORE INSERT ON alias_moves
    WHEN EXISTS (SELECT 1 FROM alias_moves WHERE alias = NEW.alias)
     AND NOT EXISTS (
        SELECT 1 FROM rounds
        WHERE "index" = NEW.round AND state = 'accepted' AND candidate = NEW.target
     )
    BEGIN SELECT RAISE(ABORT, 'an alias moves only to the candidate of an accepted round'); END;
CREATE TRIGGER alias_moves_compare_and_set BEFORE INSERT ON alias_moves
    WHEN NEW.previous IS NOT (
        SELECT target FROM alias_moves WHERE alias = NEW.alias ORDER BY seq DESC LIMIT 1
    )
    BEGIN SELECT RAISE(ABORT, 'the alias does not point where the move expects it'); END;
CREATE TRIGGER alias_moves_are_never_changed BEFORE UPDATE ON alias_moves
    BEGIN SELECT RAISE(ABORT, 'alias moves are append-only'); END;
CREATE TRIGGER alias_moves_are_never_deleted BEFORE DELETE ON alias_moves
    BEGIN SELECT RAISE(ABORT, 'alias moves are append-only'); END;
CREATE TRIGGER verdicts_are_never_changed BEFORE UPDATE ON rounds
    WHEN OLD.state IN ('accepted', 'rejected', 'failed')
    BEGIN SELECT RAISE(ABORT, 'the verdict of an attempt is final'); END;
CREATE TRIGGER verdicts_are_never_deleted BEFORE DELETE ON rounds
    WHEN OLD.state IN ('accepted', 'rejected', 'failed')
    BEGIN SELECT RAISE(ABORT, 'the verdict of an attempt is final'); END;
COMMIT;
