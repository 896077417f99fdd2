;; A good step that imports nothing: returns its input.
(component
  (core module $guest
    (memory $main (export "memory") 1)
    ;; Hands out memory upwards and never takes it back.
    (global $free (mut i32) (i32.const 1024))
    (func (export "cabi_realloc") (param i32 i32 i32) (param $size i32) (result i32)
      (local $at i32)
      (local.set $at (i32.and (i32.add (global.get $free) (i32.const 7)) (i32.const -8)))
      (global.set $free (i32.add (local.get $at) (local.get $size)))
      (block $fits (loop $grow
        (br_if $fits (i32.le_u (global.get $free) (i32.mul (memory.size) (i32.const 65536))))
        (if (i32.eq (memory.grow (i32.const 1)) (i32.const -1)) (then unreachable))
        (br $grow)))
      (local.get $at))

    ;; Writes `ok(string)` to address 16 and returns that.
    (func $ok (param $text i32) (param $bytes i32) (result i32)
      (i32.store8 (i32.const 16) (i32.const 0))
      (i32.store (i32.const 24) (local.get $text))
      (i32.store (i32.const 28) (local.get $bytes))
      (i32.const 16))
    (func (export "run") (param $arguments i32) (result i32)
      (call $ok (i32.load offset=72 (local.get $arguments)) (i32.load offset=76 (local.get $arguments))))
  )
  (core instance $guest (instantiate $guest))

  (alias core export $guest "memory" (core memory $memory))
  (alias core export $guest "cabi_realloc" (core func $realloc))
  (alias core export $guest "run" (core func $core-run))

  (type $failure (record (field "code" string) (field "message" string)))
  (type $retryable (record (field "code" string) (field "message" string) (field "retry-after-ms" (option u64))))
  (type $error (variant
      (case "retryable" $retryable) (case "rate-limited" $retryable)
      (case "invalid-input" $failure) (case "fatal" $failure)))
  (type $context (record
    (field "run-id" string) (field "flow-id" string) (field "step-id" string) (field "task-id" string)
    (field "attempt" u32) (field "max-attempts" u32) (field "idempotency-key" string) (field "deadline-ms" u64)
    (field "trace-parent" (option string))))
  (func $run (param "ctx" $context) (param "input" string) (result (result string (error $error)))
    (canon lift (core func $core-run) (memory $memory) (realloc $realloc)))

  ;; Gives the types the names that an exported interface must have.
  (component $names
    (type $failure_ (record (field "code" string) (field "message" string)))
    (import "failure" (type $failure (eq $failure_)))
    (type $retryable_ (record (field "code" string) (field "message" string) (field "retry-after-ms" (option u64))))
    (import "retryable-failure" (type $retryable (eq $retryable_)))
    (type $error_ (variant
      (case "retryable" $retryable) (case "rate-limited" $retryable)
      (case "invalid-input" $failure) (case "fatal" $failure)))
    (import "step-error" (type $error (eq $error_)))
    (type $context_ (record
      (field "run-id" string) (field "flow-id" string) (field "step-id" string) (field "task-id" string)
      (field "attempt" u32) (field "max-attempts" u32) (field "idempotency-key" string) (field "deadline-ms" u64)
      (field "trace-parent" (option string))))
    (import "context" (type $context (eq $context_)))
    (import "run" (func $run (param "ctx" $context) (param "input" string) (result (result string (error $error)))))
    (export $failure-out "failure" (type $failure))
    (export $retryable-out "retryable-failure" (type $retryable))
    (type $error-named (variant
      (case "retryable" $retryable-out) (case "rate-limited" $retryable-out)
      (case "invalid-input" $failure-out) (case "fatal" $failure-out)))
    (export $error-out "step-error" (type $error-named))
    (export $context-out "context" (type $context))
    (export "run" (func $run)
      (func (param "ctx" $context-out) (param "input" string) (result (result string (error $error-out))))))
  (instance $step (instantiate $names
    (with "failure" (type $failure)) (with "retryable-failure" (type $retryable)) (with "step-error" (type $error))
    (with "context" (type $context)) (with "run" (func $run))))
  (export "tracemind:flow/step@0.1.0" (instance $step)))
