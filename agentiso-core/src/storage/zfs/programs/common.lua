local args = ...

-- A user property, if it is set on the dataset itself: others are inherited by whatever anyone makes below it.
local function own(name, property)
  local value, source = zfs.get_prop(name, property)
  if source == name then
    return value
  end
end

