;; Exports the interface by name, but `run` has another type.
(component
  (core module $guest (func (export "run") (param i32) (result i32) (local.get 0)))
  (core instance $guest (instantiate $guest))
  (alias core export $guest "run" (core func $core-run))
  (func $run (param "input" u32) (result u32) (canon lift (core func $core-run)))
  (instance $step (export "run" (func $run)))
  (export "tracemind:flow/step@0.1.0" (instance $step)))
