;; A component that is no step: it exports nothing.
(component)
